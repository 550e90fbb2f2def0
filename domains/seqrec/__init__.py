"""Sequential recommendation: MQSA-TED, SASRec and a transition model."""
