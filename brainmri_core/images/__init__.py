"""Images: decoding foreign files, fingerprints, the search for copies, and the pack."""
