# frozen_string_literal: true

# Debian's vagrant comes without these gems. `vagrant validate` loads them and connects to nothing:
# empty error classes are all that it looks at.
module WinRM
  def self.const_missing(name)
    const_set(name, Class.new(StandardError))
  end
end

module HTTPClient
  def self.const_missing(name)
    const_set(name, Class.new(StandardError))
  end
end
