"""Prints all recipes: `python -m experiments.recipes`."""

from rich.console import Console
from rich.table import Table

from experiments.recipes import RECIPES, recipe


def main() -> None:
    """One table of names, papers, results and costs."""
    table = Table("recipe", "paper", "published", "ours", "cost", show_lines=True)
    table.columns[0].no_wrap = True
    for name in RECIPES:
        found = recipe(name)
        paper = f"{found.paper.title}, arXiv {found.paper.arxiv}"
        table.add_row(name, paper, found.published, found.ours, found.cost)
    Console().print(table)


if __name__ == "__main__":
    main()
