"""P2's question: one direction between reasoning and memory?"""
