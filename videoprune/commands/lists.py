"""What there is: `videoprune methods`, `recipes`, `validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from videoprune import console
from videoprune.commands.common import Json, Set


def methods(
    stage: Annotated[str | None, typer.Argument(metavar="STAGE", help="segment, encode, …")] = None, json: Json = False
) -> None:
    """List the methods, of all stages or of one.

    \b
    Examples:
      videoprune methods
      videoprune methods prefill --json
    """
    from videoprune.registry import discover
    from videoprune.registry import methods as listed

    entries = listed(stage)
    for problem in discover()[1]:
        console.say(f"warning: method {problem}")
    if json:
        console.print_json([entry.facts() for entry in entries])
        return
    rows = []
    for entry in entries:
        question, count = "needed" if entry.needs_question else "-", "fixed" if entry.fixed_count else "by data"
        rows.append((entry.stage, entry.name, entry.scope, question, count, entry.attention, entry.paper))
    print(console.columns(("STAGE", "METHOD", "SCOPE", "QUESTION", "COUNT", "ATTENTION", "PAPER"), rows))


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one.")] = None, json: Json = False
) -> None:
    """List the shipped recipes, or print one as YAML to start your own from.

    \b
    Examples:
      videoprune recipes
      videoprune recipes demo > mine.yaml
    """
    from videoprune.recipe import Recipe, recipe_names, recipe_text

    if name is not None:
        text, recipe = recipe_text(name), Recipe.load(name)
        if json:
            console.print_json({**recipe.to_dict(), "stages": recipe.stages(), "digest": recipe.digest()})
        else:
            print(text, end="")
        return
    found = [Recipe.load(each) for each in recipe_names()]
    if json:
        console.print_json(
            [{"name": each.name, "description": each.description, "stages": each.stages()} for each in found]
        )
        return
    for each in found:
        chain = (
            "  ".join(f"{stage}: {'+'.join(names)}" for stage, names in each.stages().items()) or "nothing is pruned"
        )
        print(f"{each.name}\n  {each.description}\n  {chain}")


def validate(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name or a YAML file.")],
    set_: Set = None,
    json: Json = False,
) -> None:
    """Check a recipe without a model: keys, types, methods and their options.

    \b
    Examples:
      videoprune validate mine.yaml
      videoprune validate demo --set merge.keep=0.3
    """
    from videoprune.recipe import Recipe

    checked = Recipe.load(recipe, set_ or [])
    checked.build()
    if json:
        console.print_json({"valid": True, **checked.to_dict(), "digest": checked.digest()})
    else:
        print(f"{checked.name} is valid")
        print(checked.to_yaml(), end="")
