"""How a database comes to have the tables of ``tables.py``, step by step."""
