"""The other model servers that Twofold is compared with: a folder for each, and the code that measures them."""
