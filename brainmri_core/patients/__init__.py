"""Who is on which image, and which labels are known to be wrong: tables of known data sets, and those a user brings."""
