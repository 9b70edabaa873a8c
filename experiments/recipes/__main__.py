"""Prints all recipes: `python -m experiments.recipes`."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from experiments.recipes import RECIPES, Recipe, recipe


def described(found: Recipe) -> Table:
    """What is known of a recipe: its paper, what was published, what came out here, what it costs."""
    table = Table.grid("name", "text", padding=(0, 2))
    table.add_row("paper", f"{found.paper.title}, arXiv {found.paper.arxiv}")
    for name in ("published", "ours", "cost"):
        table.add_row(name, getattr(found, name))
    return table


def main() -> None:
    """Names, and what is known of each."""
    console = Console()
    for name in RECIPES:
        console.print(f"[bold]{name}[/bold]", highlight=False)
        console.print(Padding(described(recipe(name)), (0, 0, 1, 2)))


if __name__ == "__main__":
    main()
