"""Files that people write: this package finds them, reads them and words their errors."""
