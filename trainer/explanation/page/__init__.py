"""Page of explanations for people who know the products and not the model. No torch.

Files:
    attention.py     summary of attention over all explained users
    explain.html.j2  template of the page
    item_facts.py    items as people know them: titles and features
    render.py        the page
    trust.py         faithfulness of the shown method, in plain words
    users.py         the users of the page, with their explained items
"""
