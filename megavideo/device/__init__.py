"""What a device does beside computing: copies to and from host memory."""
