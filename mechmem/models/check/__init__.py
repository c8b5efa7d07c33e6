"""Are sites what they are called, and does an edit there act?"""
