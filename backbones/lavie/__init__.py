"""LaVie's base model, a class of its own."""
