"""A checkpoint of any layout written as others read it: diffusers' folders, the original Wan's names, one file."""
