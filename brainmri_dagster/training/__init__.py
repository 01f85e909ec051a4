"""Training in several processes, on one or several machines."""
