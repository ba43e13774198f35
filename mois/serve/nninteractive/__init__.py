"""The protocol of nnInteractive 2.6 over sessions: an object of the client is a lesion."""
