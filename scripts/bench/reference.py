"""The transformers side of the benchmark: PyTorch on the CPU, float32, the default attention (sdpa)."""

import os

import numpy as np
import torch
import transformers
from sides import Side
from transformers import DynamicCache, GPT2LMHeadModel


def load(folder):
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return Reference(folder)


class Reference(Side):
    """transformers' GPT-2, without its `generate`, whose overhead would count against it."""

    def __init__(self, folder):
        super().__init__()
        self.model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()

    def prefill(self, ids, room):
        cache = DynamicCache(config=self.model.config)  # it grows by itself
        return self.forward(ids, cache), cache

    def step(self, token, cache):
        return self.forward(token[:, np.newaxis], cache)

    @torch.inference_mode()
    def forward(self, ids, cache):
        """Logits of the last position, [n_batch, n_vocab], the ids [n_batch, n_new] added to the cache."""
        output = self.model(torch.from_numpy(ids), cache, use_cache=True, logits_to_keep=1)  # its name has changed
        return output.logits[:, -1, :].numpy()

    def gradients(self, ids):
        """The loss of ids [n_batch, n_tokens], and the gradient of every weight: what autograd computes."""
        self.model.zero_grad(set_to_none=True)
        logits = self.model(torch.from_numpy(ids), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.from_numpy(ids)[:, 1:].flatten())
        loss.backward()
        return loss.item(), [parameter.grad for parameter in self.model.parameters()]

    def crop(self, cache, n):
        if n > 0:
            cache.crop(-n)  # negative: the number of tokens to remove
