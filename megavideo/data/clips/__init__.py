"""Video, images and captions as users have them."""
