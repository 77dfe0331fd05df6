"""The shared nouns and the only two step loops: `invert` a clip, `edit` it."""
