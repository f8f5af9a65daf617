use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, html};

/// A PNG picture that is embedded in a page once and shown in parts, each with a text of its own for those who do not see it.
pub(crate) struct Sheet<'a> {
    /// Its name in the page, which no other part of it has.
    pub(crate) id: String,
    /// Columns and rows of pixels.
    pub(crate) size: [usize; 2],
    pub(crate) png: &'a [u8],
}

impl Sheet<'_> {
    /// The picture itself, which is not seen; it stands once, before the first of its parts.
    pub(crate) fn embedded(&self) -> Markup {
        let [width, height] = self.size;
        html! {
            svg.hidden width="0" height="0" aria-hidden="true" {
                defs {
                    image id=(self.id) width=(width) height=(height)
                        href={ "data:image/png;base64," (STANDARD.encode(self.png)) } {}
                }
            }
        }
    }

    /// A part of it from `left` and `top` on, pixels as squares, with `over` drawn above it in pixels of that part.
    pub(crate) fn part(
        &self,
        text: &str,
        [left, top]: [usize; 2],
        [width, height]: [usize; 2],
        over: &Markup,
    ) -> Markup {
        html! {
            svg.part role="img" aria-label=(text) viewBox={ "0 0 " (width) " " (height) } {
                use href={ "#" (self.id) } x={ "-" (left) } y={ "-" (top) } {}
                (over)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_is_embedded_once_and_its_parts_say_what_they_show() {
        let sheet = Sheet { id: "sheet-0".into(), size: [10, 20], png: b"not a picture" };
        let text = "\"><script>alert(1)</script>";
        let part = sheet.part(text, [0, 5], [10, 5], &html! {}).into_string();
        assert!(!part.contains("<script") && part.contains("aria-label=\"&quot;&gt;&lt;script&gt;"), "{part}");
        assert!(part.contains("viewBox=\"0 0 10 5\"") && part.contains("x=\"-0\" y=\"-5\""), "{part}");
        assert!(part.contains("href=\"#sheet-0\"") && !part.contains("base64"), "{part}");
        let whole = sheet.embedded().into_string();
        assert!(whole.contains("id=\"sheet-0\"") && whole.contains(&STANDARD.encode(b"not a picture")), "{whole}");
    }
}
