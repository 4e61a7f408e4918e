"""Where files live: a folder or an object store, and what makes writing and reading them safe."""
