"""Routing by value on the default model and offline questions: a table, pictures, a page and one sentence, into demo/.

Adapters for skipped layers, a table of what each path of a menu is worth, a router that learns from it, a guarantee,
and an evaluation on test questions beside the base, static paths, routers that learned nothing, and published Dr.LLM.
It takes some 30 minutes on 2 cores. demo/ is made in the current folder. Every stage is the command a user would type;
what is finished is not done again, and without demo/ all is. All that is set here was chosen on search and validation
questions.
"""

from __future__ import annotations

from routing.common.parser import Parser


def main(argv: list[str] | None = None) -> None:
    Parser(prog="dlr demo", description=__doc__).parse_args(argv)
    from routing.commands.work.demo import run  # Takes seconds to import.

    run()


if __name__ == "__main__":
    main()
