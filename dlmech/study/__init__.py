"Many runs side by side: comparisons, sweeps, controls, each resumable."
