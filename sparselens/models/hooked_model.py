"""The type of the models that analyses take: TransformerLens' TransformerBridge (4.x) and HookedTransformer (3.x)."""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:

    class HookedModel(Protocol):
        """What the two have in common; they share no base class that a type checker knows."""

        cfg: Any
        blocks: Any
        training: bool

        def run_with_hooks(self, *args: Any, **options: Any) -> Any: ...  # noqa: D102
        def run_with_cache(self, *args: Any, **options: Any) -> Any: ...  # noqa: D102

else:
    HookedModel = Any  # checked where a model comes in (`gates.hooked.is_hooked`), with a message that says more
