"""Damaged input of every format: nothing but an error that names the file comes of it, soon, in little memory."""
