"""From foreign image files to one array: decoding in worker processes, fitting, gray levels, and the pack."""
