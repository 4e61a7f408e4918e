"""Small data and started processes for tests; no other room imports this one."""
