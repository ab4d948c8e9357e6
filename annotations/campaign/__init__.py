"""Campaigns: raters are asked whether a label applies to an image, and no answer is ever lost.

One database holds one campaign. Who reads what:

`config`      what a campaign is: votes, gold, quotas, texts (`CampaignConfig`)
`models`      the tables
`types`       what crosses the store's edge: typed dataclasses, no rows and no dictionaries
`store`       `Store`: everything that is done with a campaign; the only door to the database
`assignment`  which question a rater gets next, and what the answers so far decide: pure functions
`status`      what a manager looks at
`exchange`    Parquet, Label Studio and MTurk files, in and out
`making`      pairs, gold and images from files, turned into a campaign
`pictures`    image files of a folder, made fit to be shown
`database`    engines, transactions, migrations, backup

`annotations.web` serves it over HTTP; its docstring lists the routes.
"""
