"""`abbe inspect`: what a file is, and what is wrong with it."""
