"""Foreign image files in, one array out: decoding in isolation, fitting, gray levels, and the pack."""
