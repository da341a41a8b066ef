"""The type of model that analyses take: TransformerLens' TransformerBridge (4.x) or HookedTransformer (3.x)."""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:

    class HookedModel(Protocol):
        """The interface common to both; they have no common base class that type checkers know."""

        cfg: Any
        blocks: Any
        training: bool

        def run_with_hooks(self, *args: Any, **options: Any) -> Any: ...  # noqa: D102
        def run_with_cache(self, *args: Any, **options: Any) -> Any: ...  # noqa: D102

else:
    HookedModel = Any  # models are checked on entry instead (`gates.hooked.refuse_other_model`), with a better message
