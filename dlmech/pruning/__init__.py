"To make a network smaller: links between layers, masks, scores, compaction."
