"""Small models with the names, the signatures and the way to attention of published code, written from scratch.

modeling_llada.py, modeling_lladamoe.py, modeling_dream.py, modeling_llada2_moe.py and modeling_sdar.py attend by torch's
scaled_dot_product_attention and not through transformers' interface, and LLaDA's knows no position ids. Weights are random, or
those of an architecture of `dlm_benches.architectures`, so that what both say can be compared.
"""
