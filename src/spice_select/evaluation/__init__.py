"""What a trained model is worth: eight benchmarks, and the loss on rows that were held out.

The benchmarks run through lm-evaluation-harness (the extra ``eval``), which is imported only when one is asked for.
"""
