"""Files that people write: where they are looked up, how they are read, what their errors say."""
