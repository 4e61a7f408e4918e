"""The attention kernels that a machine may have, behind `megavideo.model.attention.kernel`, and the choice of one."""
