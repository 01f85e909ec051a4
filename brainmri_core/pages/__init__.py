"""The HTML pages: what people read."""
