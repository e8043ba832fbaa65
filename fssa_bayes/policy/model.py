"""A causal language model with an adapter that a latent factor steers."""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fssa_bayes._files import whole_folder
from fssa_bayes._random import seeded
from fssa_bayes.policy.adapter import (
    adapters,
    follow_switch,
    peft_warnings_ignored,
    removed_on_failure,
    write_adapter,
)
from fssa_bayes.policy.base import (
    check_plain,
    find_base,
    load_base,
    of_tokenizer,
    remove_dropout,
    to_remember,
)
from fssa_bayes.policy.checks import check_factors, check_positive, check_reach, expand_factors
from fssa_bayes.policy.conditioning import (
    Conditioning,
    Traced,
    recompute_as_now,
    steered,
)
from fssa_bayes.policy.config import (
    PolicyConfig,
    chosen_layers,
    new_conditioning,
    read_config,
)
from fssa_bayes.policy.film import FiLM, decoder_layers
from fssa_bayes.policy.gates import Gates
from fssa_bayes.policy.head import Head, read_contiguous
from fssa_bayes.policy.log_probs import response_log_prob
from fssa_bayes.policy.reference import hash_weights
from fssa_bayes.policy.storage import (
    check_base,
    check_replaceable,
    describe_base,
    load_weights,
    read_description,
    save_weights,
    upload_folder,
    write_description,
)
from fssa_bayes.policy.streaming import guard_threads
from fssa_bayes.policy.writing import Writing

if TYPE_CHECKING:
    from fssa_bayes.policy.tokens import ResponseBatch

__all__ = ["SteerablePolicy"]


class SteerablePolicy(Writing, nn.Module):
    r"""A language model :math:`\pi(y \mid x, z)` whose behaviour follows a latent factor z.

    The base model is frozen; a low-rank adapter is trained, and what z does to it: by default
    :class:`Gates` of the adapter's ranks, so that one person's policy is an ordinary adapter. With
    both switched off the same weights are the reference policy. Dropout of the base model is
    removed, so that training starts at a log-ratio of 0.

    Args:
        model: The base model inside its adapter.
        conditioning: How z changes the model; it is attached to the model here.
        tokenizer: The base model's tokenizer, or None where only tokens go in and out.
        config: What the policy adds to the base model.
        identity: Description by which the base model is recognised.

    Attributes:
        shares_prompts: Whether two responses can share the computation of their prompt, by
            attention implementation, as far as :func:`shares_prompts` has found out.
    """

    def __init__(
        self,
        model: PeftModel,
        conditioning: Conditioning,
        tokenizer: PreTrainedTokenizerBase | None,
        config: PolicyConfig,
        identity: dict[str, object],
    ) -> None:
        super().__init__()
        self.model = model
        self.conditioning = conditioning
        self.tokenizer = tokenizer
        self.config = config
        self._identity = identity
        self.shares_prompts: dict[str, bool] = {}
        if isinstance(conditioning, FiLM):
            layers = decoder_layers(model)
            conditioning.attach([layers[index] for index in config.film_layers])
        else:
            conditioning.attach(model)
        follow_switch(model, conditioning)
        remove_dropout(model)
        guard_threads(self.base)
        read_contiguous(self.base)
        self._head = Head.of(self.base)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        latent_dim: int,
        lora_rank: int = 8,
        conditioning: str = "gated",
        film_layers: Sequence[int] | None = None,
        film_dim: int = 64,
        target_modules: str | Sequence[str] = "all-linear",
        lora_alpha: float | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """Builds a new policy on a pretrained model; options as in :meth:`from_model`.

        Args:
            name_or_path: A folder, or a name on the model hub.
            latent_dim: Width K of z.
            lora_rank: Rank of the adapter.
            conditioning: `"gated"`, z weighs the adapter's ranks, or `"film"`, the published way: z
                scales and shifts the outputs of decoder layers.
            film_layers: Positions of decoder layers that FiLM modulates; None for the last third.
            film_dim: Width of the hidden layer of FiLM.
            target_modules: Modules that get an adapter, as peft knows them.
            lora_alpha: What the adapter's effect is multiplied by, over its rank; None for twice
                the rank.
            dtype: Precision of the base model; None for that of its files.
            device: Where to put the model.
            seed: Seed of the initial weights of adapter and conditioning.
            **options: As for `AutoModelForCausalLM.from_pretrained`, such as
                `quantization_config`, `gguf_file`, `attn_implementation`, `revision`. Those that
                decide which function the model is are kept with the policy.
        """
        remembered = to_remember(options)
        model = load_base(name_or_path, dtype, **options)
        return cls.from_model(
            model if device is None else model.to(device),
            AutoTokenizer.from_pretrained(name_or_path, **of_tokenizer(options)),
            latent_dim=latent_dim,
            lora_rank=lora_rank,
            conditioning=conditioning,
            film_layers=film_layers,
            film_dim=film_dim,
            target_modules=target_modules,
            lora_alpha=lora_alpha,
            seed=seed,
            base_options=remembered,
        )

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        latent_dim: int,
        lora_rank: int = 8,
        conditioning: str = "gated",
        film_layers: Sequence[int] | None = None,
        film_dim: int = 64,
        target_modules: str | Sequence[str] = "all-linear",
        lora_alpha: float | None = None,
        seed: int = 0,
        base_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Builds a new policy around a model, which is changed in place.

        A new policy is the model itself, whatever z is.

        Args:
            model: A causal language model of transformers, without adapters.
            tokenizer: Its tokenizer, or None where only tokens go in and out.
            latent_dim: Width K of z.
            lora_rank: Rank of the adapter.
            conditioning: `"gated"`, z weighs the adapter's ranks, or `"film"`, the published way: z
                scales and shifts the outputs of decoder layers.
            film_layers: Positions of decoder layers that FiLM modulates; None for the last third.
            film_dim: Width of the hidden layer of FiLM.
            target_modules: Modules that get an adapter, as peft knows them.
            lora_alpha: What the adapter's effect is multiplied by, over its rank; None for twice
                the rank.
            seed: Seed of the initial weights of adapter and conditioning.
            base_options: How the model was loaded, for :meth:`load` to load it so again.

        Raises:
            ValueError: If the model has no recognisable decoder layers, has an adapter already, or
                an option is out of its range.
        """
        check_plain(model)
        if lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1, got {lora_rank}")
        if lora_alpha is not None:
            check_positive(lora_alpha=lora_alpha)
        name = model.name_or_path
        if name and Path(name).is_dir():  # So that the folder is found from any working folder.
            name = str(Path(name).absolute())
        config = PolicyConfig(
            latent_dim=latent_dim,
            lora_rank=lora_rank,
            film_layers=chosen_layers(conditioning, film_layers, len(decoder_layers(model))),
            film_dim=film_dim,
            target_modules=target_modules
            if isinstance(target_modules, str)
            else tuple(target_modules),
            base_model=name,
            conditioning=conditioning,
            lora_alpha=lora_alpha,
            base_options=dict(base_options or {}),
        )
        identity = describe_base(model)
        with seeded(seed), peft_warnings_ignored(), removed_on_failure(model):
            return cls._adapted(model, tokenizer, config, identity)

    @classmethod
    def _adapted(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        config: PolicyConfig,
        identity: dict[str, object],
    ) -> Self:
        """Adds a new adapter and a new conditioning to a model."""
        modules = config.target_modules
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            target_modules=modules if isinstance(modules, str) else list(modules),
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(model, lora)
        if isinstance(model.get_output_embeddings(), BaseTunerLayer):
            raise ValueError(
                "target_modules must not include the output layer, which log-probabilities "
                f"are computed by, got {modules!r}"
            )
        conditioning = new_conditioning(config, model, adapters(adapted))
        return cls(adapted, conditioning, tokenizer, config, identity)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Saves adapter, conditioning, tokenizer and `policy.json`; no base model.

        peft alone does not read the folder, which would be a policy without z: see
        :meth:`adapter_for`.

        The folder is replaced as a whole, or not at all.

        Raises:
            FileExistsError: If the folder holds anything but a saved policy.
            OSError: If the folder cannot be written; its earlier content stays.
        """
        folder = Path(folder).absolute()
        check_replaceable(folder)
        with whole_folder(folder) as part:
            save_weights(self.model, self.conditioning, part)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(str(part))
            write_description(
                part,
                {
                    "policy": asdict(self.config),
                    "base": {"weights": hash_weights(self.base), **self._identity},
                    "tokenizer": self.tokenizer is not None,
                },
            )

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        *,
        base_model: str | os.PathLike | PreTrainedModel | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> Self:
        """Loads a policy and its base model.

        Args:
            folder: The folder that :meth:`save_pretrained` wrote.
            base_model: The base model, its name or path; None for where the model was
                when the policy was saved.
            device: Where to put the policy.
            **options: How to load the base model, in place of those of the time of training.

        Raises:
            FileNotFoundError: If there is no saved policy, or a file of it is missing.
            ValueError: If the folder is damaged or of another format version, or the policy was
                trained on another base model.
        """
        folder = Path(folder).absolute()
        document = read_description(folder)
        config = read_config(document["policy"], folder)
        dtype = options.pop("dtype", document["base"]["dtype"])
        options = config.base_options | options
        base = find_base(base_model, config.base_model, dtype, **options)
        check_plain(base)
        check_base(base, document["base"])
        base = base if device is None else base.to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder) if document["tokenizer"] else None
        # Initial weights are drawn, then overwritten.
        with seeded(0), peft_warnings_ignored(), removed_on_failure(base):
            made = cls._adapted(base, tokenizer, config, document["base"])
            load_weights(made.model, made.conditioning, folder)
        return made

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        token: str | None = None,
        commit_message: str = "Upload a steerable policy",
    ) -> str:
        """Uploads what :meth:`save_pretrained` writes; nothing else of this library uploads.

        Args:
            repo_id: Name of the repository on the hub, which is made where there is none.
            private: Whether a new repository is private.
            token: The hub's token; None for the one that is stored on this machine.
            commit_message: Message of the commit.

        Returns:
            Address of the commit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "policy")
            return upload_folder(Path(folder) / "policy", repo_id, private, token, commit_message)

    def adapter_for(self, z: Tensor, folder: str | os.PathLike) -> None:
        r"""Writes the policy of one person as an ordinary adapter, in peft's format.

        The adapter is (B diag(g(z)), A), in the precision of the parameters. On the base model it
        gives this policy's logits under z up to rounding, also merged into the weights. Whatever
        reads adapters of peft can serve it, without this library.

        Args:
            z: Latent factor (K,): a draw of a person's posterior, or its mean.
            folder: Where to write; replaced as a whole, or not at all.

        Raises:
            ValueError: If z has another shape or is not finite, or the conditioning is FiLM, which
                no adapter can express.
            FileExistsError: If the folder holds anything but an adapter.
        """
        check_factors("z", z)
        if not isinstance(self.conditioning, Gates):
            raise ValueError(
                f"conditioning must be 'gated' to write an adapter, got "
                f"{self.config.conditioning!r}"
            )
        if z.shape != (self.latent_dim,) or not z.isfinite().all():
            raise ValueError(
                f"z must be finite with shape ({self.latent_dim},), got {tuple(z.shape)}: {z}"
            )
        with torch.no_grad():
            gates = self.conditioning(z.to(self.device)[None])[:, 0]
        with peft_warnings_ignored():
            write_adapter(self.model, gates, Path(folder).absolute())

    @property
    def quantised_weights(self) -> str | None:
        """SHA-256 of a quantised base model's weights before their first use; None for others."""
        return self._identity.get("weights") if self._identity.get("quantised") else None

    @property
    def base(self) -> PreTrainedModel:
        """The causal language model inside the adapter."""
        return self.model.get_base_model()

    @property
    def latent_dim(self) -> int:
        """Width K of z."""
        return self.config.latent_dim

    @property
    def reach(self) -> int | None:
        """Number of positions of the base model; None if it does not say."""
        return getattr(self.base.config.get_text_config(), "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""
        return self.base.device

    @property
    def output_layer(self) -> nn.Module:
        """The linear map from :meth:`hidden_states` to logits, those before :attr:`softcap`.

        Raises:
            ValueError: If the model computes its logits in an unknown way.
        """
        self._head.check(self.base)
        return self.base.get_output_embeddings()

    @property
    def softcap(self) -> float | None:
        """c of models that replace logits ℓ by c·tanh(ℓ/c), else None."""
        return self._head.softcap

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Lists the parameters of adapter and conditioning."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def enable_gradient_checkpointing(self, *, use_reentrant: bool = False) -> None:
        """Recomputes decoder layers in backward, in training mode, instead of storing them.

        What is recomputed has the z of its forward, which may have changed by then.

        Args:
            use_reentrant: Which of PyTorch's two ways to use; backward must not be called inside
                :meth:`reference` if True.

        Raises:
            ValueError: If `use_reentrant` is True and z acts inside of what is recomputed, which it
                does unless the conditioning is FiLM.
        """
        if use_reentrant and isinstance(self.conditioning, Gates):
            raise ValueError(
                "use_reentrant must be False for conditioning='gated': it cannot recompute layers "
                "under the z of their forward"
            )
        options: dict[str, Any] = {"use_reentrant": use_reentrant}
        if use_reentrant:  # It needs an input that requires a gradient.
            self.base.enable_input_require_grads()
        else:
            options["context_fn"] = recompute_as_now
        self.base.activation_checkpointing_enable(options)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Switches adapter and conditioning off inside the block, in this thread or task alone.

        The policy is then the base model, bit for bit, also inside a :func:`steered`.

        Raises:
            ValueError: If the adapter was merged into the base model's weights.
        """
        if any(layer.merged for layer in adapters(self.model)):
            raise ValueError("adapter must not be merged into the base model: unmerge it first")
        with self.conditioning.switched_off():
            yield

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, z: Tensor | None = None
    ) -> Tensor:
        """Computes logits with shape (R, T, V).

        Args:
            input_ids: Tokens with shape (R, T).
            attention_mask: 1 at tokens and 0 at padding, which may be on either side, with shape
                (R, T); None for no padding.
            z: Latent factors (K,) for all or (R, K), one a sequence; None for those of the
                surrounding :func:`steered`, if any, else z = 0 (under FiLM the adapter alone).

        Raises:
            ValueError: If z has another shape.
        """
        with self._steered(z, len(input_ids)):
            inputs = self._inputs(input_ids, attention_mask, None)
            return self.base(**inputs).logits

    def logits_at(
        self,
        input_ids: Tensor,
        mask: Tensor,
        attention_mask: Tensor | None = None,
        *,
        z: Tensor | None = None,
    ) -> Tensor:
        """Computes logits at some of the positions but the last, with shape (N, V).

        Args:
            input_ids: Tokens with shape (R, T).
            mask: N positions, with shape (R, T − 1) and type bool.
            attention_mask: As in :meth:`forward`.
            z: As in :meth:`forward`.
        """
        if not self._head.is_known:
            return self(input_ids, attention_mask, z=z)[:, :-1][mask]
        hidden = self.hidden_states(input_ids, attention_mask, z=z)[:, :-1][mask]
        logits = self.output_layer(hidden)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        z: Tensor | None = None,
    ) -> Tensor:
        """Computes the hidden states that the output layer takes, with shape (R, T, H).

        Arguments are those of :meth:`forward`; `position_ids` (R, T) follow from the mask if None.
        """
        with self._steered(z, len(input_ids)):
            inputs = self._inputs(input_ids, attention_mask, position_ids)
            return self._head.scaled(self.base.base_model(**inputs).last_hidden_state)

    def sequence_log_prob(
        self, batch: ResponseBatch, z: Tensor | None = None, *, chunk_size: int | None = None
    ) -> Tensor:
        r"""Computes :math:`\log \pi(y \mid x, z)`, summed over the tokens of each response.

        Args:
            batch: R sequences.
            z: Latent factors (K,) for all, (R, K) one a sequence, or draws (S, R, K).
            chunk_size: Logits held at a time; None for the device's default.

        Returns:
            Log-probabilities in nats with shape (R,), or (S, R) for draws.

        Raises:
            ValueError: If z has another shape, or the model computes its logits in an unknown way.
        """
        rows = len(batch.input_ids)
        self.check_length(batch)
        if z is not None:
            check_factors("z", z)
        if z is not None and z.ndim == 3:
            expand_factors(z, rows, self.latent_dim)  # Checks the shape.
            # One draw at a time, so that each rounds as the reference policy does.
            return torch.stack(
                [self.sequence_log_prob(batch, draw, chunk_size=chunk_size) for draw in z]
            )
        return response_log_prob(
            self.hidden_states(batch.input_ids, batch.attention_mask, z=z)[:, :-1],
            self.output_layer,
            batch.input_ids[:, 1:],
            batch.response_mask[:, 1:],
            softcap=self.softcap,
            chunk_size=chunk_size,
        )

    def check_length(self, batch: ResponseBatch) -> None:
        """Raises ValueError if a sequence is longer than the model has positions."""
        reach = self.reach
        if reach is not None and batch.attention_mask.shape[1] > reach:  # Padding may be longer.
            check_reach(self.base, int(batch.attention_mask.sum(-1).max()), "sequences")

    def _inputs(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> dict[str, Any]:
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if "position_ids" in inspect.signature(self.base.forward).parameters:
            inputs["position_ids"] = position_ids
        return inputs

    def _steered(self, z: Tensor | None, rows: int) -> contextlib.AbstractContextManager[None]:
        if z is not None:
            check_factors("z", z)
        if z is not None and z.shape not in ((self.latent_dim,), (rows, self.latent_dim)):
            raise ValueError(
                f"z must have shape (K,) or (R, K) with K = {self.latent_dim} and R = {rows}, got "
                f"{tuple(z.shape)}"
            )
        z = None if z is None else torch.atleast_2d(z)
        if torch.compiler.is_compiling():
            return Traced(self.conditioning, z)
        return contextlib.nullcontext() if z is None else steered(z)
