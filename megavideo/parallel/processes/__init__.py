"""The processes that train together: how they start, the mesh they form, their groups."""
