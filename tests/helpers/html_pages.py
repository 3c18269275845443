"""What is in an HTML page."""

import html.parser


class Page(html.parser.HTMLParser):
    """Notes tags and text; fails at an end of another tag than was last opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        elif tag not in ("meta", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
