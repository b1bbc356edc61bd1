"""The command `suture`: one command, one file; each calls one function of the library and shows what it returns."""
