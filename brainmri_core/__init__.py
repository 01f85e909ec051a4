"""Brain-tumour MRI classification as a plain library: fetch, split, resize, validate, train, evaluate."""

__version__ = "0.1.0"
