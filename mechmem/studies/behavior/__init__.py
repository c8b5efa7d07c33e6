"""P1's question: what does the model do, where, and can it be turned?"""
