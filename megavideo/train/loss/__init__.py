"""Terms of the loss beside the error of each token."""
