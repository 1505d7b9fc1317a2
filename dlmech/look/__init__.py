"The explorer, its views, and the report."
