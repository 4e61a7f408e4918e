"""Groups, sharded layers and engines: the only room that speaks to DeepSpeed, megatron-core and Transformer Engine."""
