"""The Hugging Face hub: what a repository holds, its files downloaded and verified, their cache.

huggingface_hub makes the requests and keeps the cache, so that all programs on a machine share it.
Ours is what it lacks: a partial file is kept and resumed, by another process too, and nothing
enters the cache before its hash is verified.
"""
