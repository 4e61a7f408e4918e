"""The process group, the mesh and the engine: the only room that speaks to DeepSpeed."""
