"""A causal language model with an adapter and modulation, steered by a latent factor."""

from __future__ import annotations

import contextlib
import inspect
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fssa_bayes._files import whole_folder
from fssa_bayes._random import seeded
from fssa_bayes.policy._common import check_reach
from fssa_bayes.policy.film import (
    FiLM,
    Traced,
    check_factors,
    decoder_layers,
    recompute_as_now,
    steered,
    surrounding_z,
)
from fssa_bayes.policy.generation import Message, encode_prompts, filler_token, generate_tokens
from fssa_bayes.policy.head import Head
from fssa_bayes.policy.log_probs import response_log_prob
from fssa_bayes.policy.reference import hash_weights
from fssa_bayes.policy.storage import (
    check_base,
    check_replaceable,
    describe_base,
    read_description,
    write_description,
)

if TYPE_CHECKING:
    from fssa_bayes.policy.data import ResponseBatch

__all__ = ["PolicyConfig", "SteerablePolicy", "interpolate"]

_FILM = "film.safetensors"


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy adds to its base model.

    Args:
        latent_dim: Width K of z.
        lora_rank: Rank of the adapter.
        film_layers: Positions of the modulated decoder layers, from 0.
        film_dim: Width of the modulation's hidden layer.
        target_modules: Modules that get an adapter, as peft knows them.
        base_model: Name or path of the base model; empty if it has none.
    """

    latent_dim: int
    lora_rank: int
    film_layers: tuple[int, ...]
    film_dim: int
    target_modules: str | tuple[str, ...]
    base_model: str


class SteerablePolicy(nn.Module):
    r"""A language model :math:`\pi(y \mid x, z)` whose behaviour follows a latent factor z.

    The base model is frozen; a low-rank adapter and feature-wise modulation of its decoder layers
    are trained. With both switched off the same weights are the reference policy. Dropout of the
    base model is removed, so that training starts at a log-ratio of 0.

    Args:
        model: The base model inside its adapter.
        film: The modulation, attached to its decoder layers.
        tokenizer: The base model's tokenizer, or None where only tokens go in and out.
        config: What the policy adds to the base model.
        identity: What the base model is known again by.
    """

    def __init__(
        self,
        model: PeftModel,
        film: FiLM,
        tokenizer: PreTrainedTokenizerBase | None,
        config: PolicyConfig,
        identity: dict[str, object],
    ) -> None:
        super().__init__()
        self.model = model
        self.film = film
        self.tokenizer = tokenizer
        self.config = config
        self._identity = identity
        layers = decoder_layers(model)
        film.attach([layers[index] for index in config.film_layers])
        _follow_switch(model, film)
        _remove_dropout(model)
        self._head = Head.of(self.base)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike,
        *,
        latent_dim: int,
        lora_rank: int = 8,
        film_layers: Sequence[int] | None = None,
        film_dim: int = 64,
        target_modules: str | Sequence[str] = "all-linear",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> Self:
        """Builds a new policy on a pretrained model; options as in :meth:`from_model`.

        Args:
            name_or_path: A folder, or a name on the model hub.
            latent_dim: Width K of z.
            lora_rank: Rank of the adapter.
            film_layers: Positions of decoder layers to modulate; None for all.
            film_dim: Width of the modulation's hidden layer.
            target_modules: Modules that get an adapter, as peft knows them.
            dtype: Precision of the base model; None for that of its files.
            device: Where to put it.
            seed: Seed of the adapter's and the modulation's first weights.
        """
        model = _load_base(name_or_path, dtype)
        return cls.from_model(
            model if device is None else model.to(device),
            AutoTokenizer.from_pretrained(name_or_path),
            latent_dim=latent_dim,
            lora_rank=lora_rank,
            film_layers=film_layers,
            film_dim=film_dim,
            target_modules=target_modules,
            seed=seed,
        )

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        latent_dim: int,
        lora_rank: int = 8,
        film_layers: Sequence[int] | None = None,
        film_dim: int = 64,
        target_modules: str | Sequence[str] = "all-linear",
        seed: int = 0,
    ) -> Self:
        """Builds a new policy around a model, which is changed in place.

        Until it is trained, it is the model itself whatever z is.

        Args:
            model: A causal language model of transformers, without adapters.
            tokenizer: Its tokenizer, or None where only tokens go in and out.
            latent_dim: Width K of z.
            lora_rank: Rank of the adapter.
            film_layers: Positions of decoder layers to modulate; None for all.
            film_dim: Width of the modulation's hidden layer.
            target_modules: Modules that get an adapter, as peft knows them.
            seed: Seed of the adapter's and the modulation's first weights.

        Raises:
            ValueError: If the model has no recognisable decoder layers, has an adapter already, or
                an option is out of its range.
        """
        _check_plain(model)
        if lora_rank < 1:
            raise ValueError(f"lora_rank must be at least 1, got {lora_rank}")
        config = PolicyConfig(
            latent_dim=latent_dim,
            lora_rank=lora_rank,
            film_layers=_film_layers(film_layers, len(decoder_layers(model))),
            film_dim=film_dim,
            target_modules=target_modules
            if isinstance(target_modules, str)
            else tuple(target_modules),
            base_model=_where(model.name_or_path),
        )
        identity = describe_base(model)
        with seeded(seed), _peft_warnings():
            film = _new_film(config, model)
            with _undone_on_failure(model):
                adapted = get_peft_model(model, _lora(config))
                _check_output_layer(model, config)
                return cls(adapted, film, tokenizer, config, identity)

    # ------------------------------------------------------------------ on disk

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Saves adapter (as peft does), modulation, tokenizer and `policy.json`; no base model.

        The folder is replaced as a whole, or not at all.

        Raises:
            FileExistsError: If the folder holds anything but a saved policy.
            OSError: If it cannot be written; what was there before is untouched.
        """
        folder = Path(folder).absolute()
        check_replaceable(folder)
        film = {name: value.detach().cpu() for name, value in self.film.state_dict().items()}
        with whole_folder(folder) as part:
            self.model.save_pretrained(str(part), save_embedding_layers=False)
            safetensors.torch.save_file(film, part / _FILM)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(str(part))
            write_description(
                part,
                {
                    "policy": asdict(self.config),
                    "base": {**self._identity, "weights": hash_weights(self.base)},
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
    ) -> Self:
        """Loads a policy and the base model that it needs.

        Args:
            folder: The folder that :meth:`save_pretrained` wrote.
            base_model: The base model, its name or path; None for where it was when saved.
            device: Where to put the policy.

        Raises:
            FileNotFoundError: If there is no saved policy, or it is incomplete.
            ValueError: If it is damaged, of another format version, or its base model is another.
        """
        folder = Path(folder).absolute()
        document = read_description(folder)
        config = _read_config(document["policy"], folder)
        base = _find_base(base_model, config.base_model, document["base"]["dtype"])
        _check_plain(base)
        check_base(base, document["base"])
        base = base if device is None else base.to(device)
        with seeded(0), _peft_warnings():  # First weights are drawn, though overwritten.
            film = _new_film(config, base)
            _load_film(film, folder)
            tokenizer = AutoTokenizer.from_pretrained(folder) if document["tokenizer"] else None
            with _undone_on_failure(base):
                model = PeftModel.from_pretrained(
                    base, str(folder), is_trainable=True, torch_device=str(base.device)
                )
                return cls(model, film, tokenizer, config, document["base"])

    # ------------------------------------------------------------------ parts

    @property
    def base(self) -> PreTrainedModel:
        """The causal language model inside the adapter."""
        return self.model.get_base_model()

    @property
    def latent_dim(self) -> int:
        """Width K of z."""
        return self.config.latent_dim

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""
        return self.base.device

    @property
    def output_layer(self) -> nn.Module:
        """The linear map from :meth:`hidden_states` to logits, those before :attr:`softcap`.

        Raises:
            ValueError: If the model does with its logits what is not known here.
        """
        self._head.check(self.base)
        return self.base.get_output_embeddings()

    @property
    def softcap(self) -> float | None:
        """c of models that replace logits ℓ by c·tanh(ℓ/c), else None."""
        return self._head.softcap

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Lists the parameters of adapter and modulation."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def enable_gradient_checkpointing(self, *, use_reentrant: bool = False) -> None:
        """Recomputes decoder layers in backward, in training mode, instead of keeping them.

        What is recomputed lies between modulations, so that z may be another by then.

        Args:
            use_reentrant: Which of PyTorch's two ways to use; backward must not be called inside
                :meth:`reference` if True.
        """
        options: dict[str, Any] = {"use_reentrant": use_reentrant}
        if use_reentrant:  # It looks for something to differentiate among a layer's inputs.
            self.base.enable_input_require_grads()
        else:
            options["context_fn"] = recompute_as_now
        self.base.activation_checkpointing_enable(options)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Switches adapter and modulation off inside the block, in this thread or task alone.

        The model is then the base model, bit for bit, inside any :func:`steered` as well.

        Raises:
            ValueError: If the adapter was merged into the base model's weights.
        """
        if any(layer.merged for layer in _adapters(self.model)):
            raise ValueError("adapter must not be merged into the base model: unmerge it first")
        with self.film.switched_off():
            yield

    # ------------------------------------------------------------------ forward

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, z: Tensor | None = None
    ) -> Tensor:
        """Computes logits with shape (R, T, V).

        Args:
            input_ids: Tokens with shape (R, T).
            attention_mask: 1 at tokens and 0 at padding, which may be on either side, with shape
                (R, T); None for no padding.
            z: Latent factors (K,) for all or (R, K), one a sequence; None for those of the
                surrounding :func:`steered`, if any.

        Raises:
            ValueError: If z has another shape.
        """
        with self._steered(z, len(input_ids)):
            inputs = self._inputs(input_ids, attention_mask, None)
            return self.base(**inputs).logits

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
            ValueError: If z has another shape, or the model makes its logits in an unknown way.
        """
        rows = len(batch.input_ids)
        self.check_length(batch)
        if z is not None:
            check_factors("z", z)
        if z is not None and z.ndim == 3:
            self._one_each(z, rows)
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
        reach = getattr(self.base.config.get_text_config(), "max_position_embeddings", None)
        if reach is not None and batch.attention_mask.shape[1] > reach:  # Padding is no matter.
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
            return Traced(self.film, z)
        return contextlib.nullcontext() if z is None else steered(z)

    # ------------------------------------------------------------------ text

    def generate(
        self,
        prompts: Sequence[str | Sequence[Message]],
        z: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 16,
    ) -> list[str] | list[list[str]]:
        """Writes a response to each prompt.

        Each response is drawn by random numbers of its own, which depend on `seed` and its place in
        the list but not on `batch_size` or z: two calls with one seed differ by what z does.

        Args:
            prompts: R strings, or conversations, lists of messages with `role` and `content`.
            z: Latent factor (K,) for all, (R, K) one a prompt, or draws (S, R, K) of the posterior:
                S responses to each prompt, draws of the policy's posterior predictive. None for
                those of the surrounding :func:`steered`, if any.
            max_new_tokens: Greatest length of a response, in tokens.
            temperature: What logits are divided by; 0 takes the most probable tokens.
            seed: Seed of the draws.
            batch_size: Number of responses written at a time.

        Returns:
            R responses, or S lists of them for draws.

        Raises:
            ValueError: If z has another shape, the tokenizer has no chat template for conversations
                or no token to pad with, or an option is out of its range.
        """
        options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        for name, value in options.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        if self.tokenizer is None:
            raise ValueError("tokenizer must be given to generate text, got None")
        filler_token(self.tokenizer)
        tokens = encode_prompts(self.tokenizer, prompts)
        if z is None:
            z = surrounding_z(len(tokens))
        z, draws = self._one_each(z, len(tokens))
        if z is not None and not z.isfinite().all():
            raise ValueError("z must be finite, got NaN or an infinite number")
        longest = max(map(len, tokens), default=0)
        check_reach(self.base, longest, "prompts", max_new_tokens)
        uniform = _uniform(len(tokens) * draws, max_new_tokens, seed, self.device)
        texts = self._write(tokens * draws, z, uniform, temperature, batch_size)
        if z is None or z.ndim < 3:
            return texts
        return [texts[start : start + len(tokens)] for start in range(0, len(texts), len(tokens))]

    def _write(
        self,
        tokens: list[list[int]],
        z: Tensor | None,
        uniform: Tensor,
        temperature: float,
        batch_size: int,
    ) -> list[str]:
        """Responds to all prompts, those of similar length together."""
        filler = filler_token(self.tokenizer)
        end = _end_tokens(self.base, self.tokenizer)
        flat = None if z is None else z.reshape(-1, self.latent_dim)
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        texts = [""] * len(tokens)
        with _evaluating(self), torch.no_grad():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                with steered(flat[rows]) if flat is not None else contextlib.nullcontext():
                    responses = generate_tokens(
                        self.base,
                        [tokens[row] for row in rows],
                        uniform[rows],
                        temperature=temperature,
                        filler=filler,
                        end=end,
                    )
                for row, response in zip(rows, responses, strict=True):
                    texts[row] = self.tokenizer.decode(response, skip_special_tokens=True)
        return texts

    def _one_each(self, z: Tensor | None, rows: int) -> tuple[Tensor | None, int]:
        """Gives z a row for each prompt: (R, K), or (S, R, K) for S draws."""
        if z is None:
            return None, 1
        check_factors("z", z)
        wide = (self.latent_dim,) if z.ndim == 1 else (rows, self.latent_dim)
        if z.ndim not in (1, 2, 3) or z.shape[-2:] != wide or (z.ndim == 3 and len(z) == 0):
            raise ValueError(
                f"z must have shape (K,), (R, K) or (S, R, K) with K = {self.latent_dim} and R = "
                f"{rows}, got {tuple(z.shape)}"
            )
        return z.expand(rows, -1) if z.ndim == 1 else z, len(z) if z.ndim == 3 else 1


def interpolate(z_from: Tensor, z_to: Tensor, steps: int) -> Tensor:
    """Returns z with shape (steps, K) on the line between two points (K,), both included.

    Raises:
        ValueError: If the points are not two vectors of one width, or there are fewer than 2 steps.
        TypeError: If a point is not a floating-point tensor.
    """
    check_factors("z_from", z_from)
    check_factors("z_to", z_to)
    if z_from.ndim != 1 or z_from.shape != z_to.shape:
        raise ValueError(
            f"z_from and z_to must have one shape (K,), got {tuple(z_from.shape)} and "
            f"{tuple(z_to.shape)}"
        )
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    weight = torch.linspace(0, 1, steps, dtype=z_from.dtype, device=z_from.device)
    return torch.lerp(z_from, z_to, weight.unsqueeze(-1))


# -------------------------------------------------------------------------- building


def _load_base(name_or_path: str | os.PathLike, dtype: torch.dtype | str | None) -> PreTrainedModel:
    with seeded(0):
        return AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype or "auto")


def _where(name_or_path: str) -> str:
    """Returns a folder's path from the root, so that it is found from elsewhere; or the name."""
    path = Path(name_or_path)
    return str(path.absolute()) if name_or_path and path.is_dir() else name_or_path


def _find_base(
    given: str | os.PathLike | PreTrainedModel | None, saved: str, dtype: str
) -> PreTrainedModel:
    if isinstance(given, PreTrainedModel):
        return given
    if given is None and not saved:
        raise ValueError("base_model must be given: the policy was built around a model of no name")
    return _load_base(given or saved, dtype)


def _check_plain(model: PreTrainedModel) -> None:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}")
    if _adapters(model):
        raise ValueError(
            "model must have no adapters, got one that is part of a policy or a PEFT model: load "
            "it again, or copy.deepcopy it first"
        )
    if model.get_output_embeddings() is None:
        raise ValueError(f"model must have an output layer, got {type(model).__name__}")


def _film_layers(chosen: Sequence[int] | None, count: int) -> tuple[int, ...]:
    if chosen is None:
        return tuple(range(count))
    layers = tuple(chosen)
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(count)):
        raise ValueError(
            f"film_layers must be distinct positions from 0 to {count - 1}, got {list(layers)}"
        )
    return tuple(sorted(layers))


def _new_film(config: PolicyConfig, model: PreTrainedModel) -> FiLM:
    width = model.config.get_text_config().hidden_size
    film = FiLM(config.latent_dim, width, len(config.film_layers), config.film_dim)
    return film.to(model.device)


def _lora(config: PolicyConfig) -> LoraConfig:
    modules = config.target_modules
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )


def _check_output_layer(model: PreTrainedModel, config: PolicyConfig) -> None:
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise ValueError(
            "target_modules must not include the output layer, which log-probabilities are "
            f"computed by, got {config.target_modules!r}"
        )


def _read_config(saved: Any, folder: Path) -> PolicyConfig:
    try:
        return PolicyConfig(**{name: _tuple(value) for name, value in saved.items()})
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"policy.json in {str(folder)!r} is damaged, or of another version ({error})"
        ) from error


def _load_film(film: FiLM, folder: Path) -> None:
    try:
        film.load_state_dict(safetensors.torch.load_file(folder / _FILM))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{_FILM} in {str(folder)!r} does not fit policy.json: {error}") from error


@contextlib.contextmanager
def _undone_on_failure(model: PreTrainedModel) -> Iterator[None]:
    """Takes adapters out again if the block fails, so that it may be tried with other options."""
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    try:
        yield
    except BaseException:
        for name, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                model.set_submodule(name, module.get_base_layer())
        vars(model).pop("peft_config", None)
        for name, value in model.named_parameters():
            value.requires_grad_(name in trained)
        raise


@contextlib.contextmanager
def _peft_warnings() -> Iterator[None]:
    """Silences peft on names that transformers will drop, and on what it sees to by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def _follow_switch(model: PeftModel, film: FiLM) -> None:
    """Lets adapters be off wherever the modulation is: peft's own switch is one for all threads."""
    for layer in _adapters(model):
        layer.forward = partial(_forward_adapted, layer, film)


def _adapters(model: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _forward_adapted(layer: BaseTunerLayer, film: FiLM, *args: Any, **kwargs: Any) -> Any:
    if film.is_switched_off:
        return layer.get_base_layer()(*args, **kwargs)
    return type(layer).forward(layer, *args, **kwargs)


def _remove_dropout(model: nn.Module) -> None:
    """Sets dropout to 0, in modules as well as in rates that layers keep as numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# -------------------------------------------------------------------------- writing


def _uniform(rows: int, count: int, seed: int, device: torch.device) -> Tensor:
    """Draws numbers in [0, 1) on the CPU, so that they are the same for every device."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(rows, count, generator=generator, dtype=torch.float64)
    return numbers.to(device, torch.float32 if device.type == "mps" else torch.float64)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Lists the tokens that end a text, by the model's generation settings or the tokenizer.

    Training ends responses by the tokenizer's, the base model may know others.
    """
    found = []
    for end in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        found += end if isinstance(end, list | tuple) else [end]
    return [end for end in dict.fromkeys(found) if end is not None]


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Puts modules in evaluation mode inside the block: in training mode caches may be off."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
