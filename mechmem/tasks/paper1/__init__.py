"""The tasks of arXiv 2412.18497 in the form of its released code: addition, colors, cipher."""
