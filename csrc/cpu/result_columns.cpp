// COCO result files straight into columns. What is not as COCO's own files have it is not judged
// here: reading then ends, and the careful reader in Python says what is wrong.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <charconv>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace instseg {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kDeepest = 64;

struct Columns {
  std::vector<int64_t> image, category, size, begin, end;
  std::vector<double> score, box;
  char* letters;  // room for the whole file; what is not written takes no memory
  int64_t written = 0;
};

// Every function leaves the text at the first character after what it read, and returns false
// where that is not what it is to read.
class Reader {
 public:
  Reader(const char* text, const char* end) : at_(text), end_(end) {}

  bool file(Columns& out) {
    if (!take('[')) return false;
    if (take(']')) return finished();
    do {
      if (!record(out)) return false;
    } while (take(','));
    return take(']') && finished();
  }

 private:
  enum Field : unsigned { kImage = 1, kCategory = 2, kScore = 4, kBox = 8, kMask = 16 };

  bool record(Columns& out) {
    unsigned seen = 0;
    if (!take('{')) return false;
    do {
      std::string_view key;
      if (!plain_string(key) || !take(':')) return false;
      unsigned field = 0;
      bool good;
      if (key == "image_id") good = integer(out.image), field = kImage;
      else if (key == "category_id") good = integer(out.category), field = kCategory;
      else if (key == "score") good = number(out.score), field = kScore;
      else if (key == "bbox") good = box(out), field = kBox;
      else if (key == "segmentation") good = mask(out), field = kMask;
      else good = skip_value(0);
      if (!good || (seen & field)) return false;
      seen |= field;
    } while (take(','));
    constexpr unsigned needed = kImage | kCategory | kScore;
    return take('}') && (seen & needed) == needed;
  }

  bool box(Columns& out) {
    return take('[') && number(out.box) && take(',') && number(out.box) && take(',') &&
           number(out.box) && take(',') && number(out.box) && take(']');
  }

  bool mask(Columns& out) {
    bool sized = false, counted = false;
    if (!take('{')) return false;
    do {
      std::string_view key;
      if (!plain_string(key) || !take(':')) return false;
      if (key == "size" && !sized) {
        sized = take('[') && integer(out.size) && take(',') && integer(out.size) && take(']');
        if (!sized) return false;
      } else if (key == "counts" && !counted) {
        counted = counts(out);
        if (!counted) return false;
      } else {
        return false;
      }
    } while (take(','));
    return take('}') && sized && counted;
  }

  // Run lengths have one character that JSON escapes, the backslash.
  bool counts(Columns& out) {
    if (!take('"')) return false;
    out.begin.push_back(out.written);
    for (;;) {
      const char* from = at_;
      while (at_ < end_ && *at_ != '"' && *at_ != '\\') ++at_;
      std::memcpy(out.letters + out.written, from, size_t(at_ - from));
      out.written += at_ - from;
      if (at_ == end_) return false;
      if (*at_++ == '"') break;
      if (at_ == end_ || *at_++ != '\\') return false;
      out.letters[out.written++] = '\\';
    }
    out.end.push_back(out.written);
    return true;
  }

  // A string without escapes.
  bool plain_string(std::string_view& out) {
    if (!take('"')) return false;
    const char* from = at_;
    while (at_ < end_ && *at_ != '"' && *at_ != '\\') ++at_;
    if (at_ == end_ || *at_ == '\\') return false;
    out = std::string_view(from, size_t(at_ - from));
    ++at_;
    return true;
  }

  bool integer(std::vector<int64_t>& out) {
    space();
    int64_t value = 0;
    const char* digits = at_ < end_ && *at_ == '-' ? at_ + 1 : at_;
    const auto [after, error] = std::from_chars(at_, end_, value);
    if (error != std::errc() || leading_zero(digits, after)) return false;
    if (after < end_ && (*after == '.' || *after == 'e' || *after == 'E')) return false;
    at_ = after;
    out.push_back(value);
    return true;
  }

  bool number(std::vector<double>& out) {
    space();
    const char* digits = at_ < end_ && *at_ == '-' ? at_ + 1 : at_;
    double value = 0;
    // from_chars knows infinities and takes ".5" and "5.", which JSON does not.
    if (digits == end_ || *digits < '0' || *digits > '9') return false;
    const auto [after, error] = std::from_chars(at_, end_, value);
    if (error != std::errc() || after[-1] == '.' || leading_zero(digits, after)) return false;
    const void* dot = std::memchr(digits, '.', size_t(after - digits));
    if (dot && (static_cast<const char*>(dot)[1] < '0' || static_cast<const char*>(dot)[1] > '9')) {
      return false;
    }
    at_ = after;
    out.push_back(value);
    return true;
  }

  static bool leading_zero(const char* digits, const char* after) {
    return after - digits > 1 && digits[0] == '0' && digits[1] >= '0' && digits[1] <= '9';
  }

  bool skip_value(int depth) {
    space();
    if (at_ == end_ || depth > kDeepest) return false;
    std::string_view text;
    switch (*at_) {
      case '"': return plain_string(text);
      case 't': return word("true");
      case 'f': return word("false");
      case 'n': return word("null");
      case '[': return skip_list(depth);
      case '{': return skip_object(depth);
      default: ignored_.clear(); return number(ignored_);
    }
  }

  bool skip_list(int depth) {
    if (!take('[')) return false;
    if (take(']')) return true;
    do {
      if (!skip_value(depth + 1)) return false;
    } while (take(','));
    return take(']');
  }

  bool skip_object(int depth) {
    if (!take('{')) return false;
    if (take('}')) return true;
    std::string_view key;
    do {
      if (!plain_string(key) || !take(':') || !skip_value(depth + 1)) return false;
    } while (take(','));
    return take('}');
  }

  bool word(std::string_view wanted) {
    if (size_t(end_ - at_) < wanted.size()) return false;
    if (std::string_view(at_, wanted.size()) != wanted) return false;
    at_ += wanted.size();
    return true;
  }

  bool take(char wanted) {
    space();
    if (at_ == end_ || *at_ != wanted) return false;
    ++at_;
    return true;
  }

  void space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }

  bool finished() {
    space();
    return at_ == end_;
  }

  const char *at_, *end_;
  std::vector<double> ignored_;
};

template <typename T>
Tensor column(std::vector<T>& values, ScalarType type, std::vector<int64_t> shape) {
  Tensor result = torch::stable::empty(shape, type);
  if (!values.empty()) {
    std::memcpy(result.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  }
  std::vector<T>().swap(values);
  return result;
}

std::vector<Tensor> result_columns(const Tensor& text) {
  STD_TORCH_CHECK(text.scalar_type() == ScalarType::Byte && text.is_contiguous(),
                  "result_columns: text must be contiguous uint8");
  const char* first = static_cast<const char*>(text.const_data_ptr());
  Tensor letters = torch::stable::empty({text.numel()}, ScalarType::Byte);
  Columns c;
  c.letters = static_cast<char*>(letters.mutable_data_ptr());
  bool good = Reader(first, first + text.numel()).file(c);
  const int64_t n = int64_t(c.image.size());
  const int64_t boxes = int64_t(c.box.size()) / 4, masks = int64_t(c.begin.size());
  // Boxes or masks for some records alone are unusual too.
  good = good && (boxes == n || boxes == 0) && (masks == n || masks == 0);
  Tensor read = torch::stable::empty({1}, ScalarType::Bool);
  *static_cast<bool*>(read.mutable_data_ptr()) = good;
  if (!good) return {read};
  return {read,
          column(c.image, ScalarType::Long, {n}),
          column(c.category, ScalarType::Long, {n}),
          column(c.score, ScalarType::Double, {n}),
          column(c.box, ScalarType::Double, {boxes, 4}),
          column(c.size, ScalarType::Long, {masks, 2}),
          letters,
          column(c.begin, ScalarType::Long, {masks}),
          column(c.end, ScalarType::Long, {masks})};
}

}  // namespace
}  // namespace instseg

STABLE_TORCH_LIBRARY_IMPL(instseg, CPU, m) {
  m.impl("ext_result_columns", TORCH_BOX(&instseg::result_columns));
}
