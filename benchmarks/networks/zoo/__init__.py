"""One network a file, written from the papers and the published structure in the plain style in which their users have them."""
