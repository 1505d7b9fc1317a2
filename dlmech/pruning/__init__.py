"To make a network smaller by what was measured: links between layers, masks, scores, compaction."
