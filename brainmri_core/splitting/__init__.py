"""Which image goes where: groups that stay together, their assignment to sides, and a stored split opened again."""
